"""What a trained model or a synthetic set gives away about the images behind it."""
