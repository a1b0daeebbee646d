"""What `make demo` runs: doctor, wordcount, pingpong, and a short summary of what was seen."""
