"""What a run keeps on disk: folder, checkpoint files, metrics; and what fits into a network."""
