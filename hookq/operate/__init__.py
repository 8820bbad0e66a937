"""What a person sees and does: dead letters, stories, pages, and which process runs where."""
