"""The commands that write and judge a model repository of Triton."""
