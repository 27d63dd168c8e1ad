"""What both scripts lean on: recipe, schedule, optimiser, checkpoints, monitors."""
