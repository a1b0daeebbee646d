"""What bounces messages for `hostd bench latency`: the guests' program, the host processes', and the Python ends."""
