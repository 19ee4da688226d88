"""ADVICE: which techniques to switch on, for a card, a pipeline and a server that may be there."""
