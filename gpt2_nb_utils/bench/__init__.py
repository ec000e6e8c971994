"""How fast this machine trains, samples, starts and saves, and how Hugging Face's GPT-2 does beside
it: the command `bench`.

It measures the code that the other folders run in earnest and changes nothing in it. Nothing but
the command line imports it.
"""
