"""Evidence, with a stated error rate, that a model was trained on a teacher's answers."""
