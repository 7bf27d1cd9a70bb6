"""The item processor, in real crawls with every signal traced."""
