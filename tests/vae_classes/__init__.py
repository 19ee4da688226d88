"""Small models of every autoencoder class of diffusers that is served, and what their pipelines do with them."""
