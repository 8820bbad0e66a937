"""All that Redis holds for webhookd, and each step that is done with it. Only this wing, and the
intake, know Redis."""
