"""What effective state-size is good for while a model is made: watching, diagnosing, initialising, regularising, compressing."""
