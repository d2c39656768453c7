"""What made the files in `weights/`: one module for each published archive."""
