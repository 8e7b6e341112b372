"""What did it learn? Diagnostics of any trained autoencoder: pure functions of model and data that return numbers with their uncertainty."""
