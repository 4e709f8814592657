"""Text in: problems from files, prompts as a model reads them, and the grading of what it answers."""
