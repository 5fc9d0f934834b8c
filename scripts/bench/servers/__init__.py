"""What the benchmark measures against: the same pickled model in each of these servers, with as little around it as it takes."""
