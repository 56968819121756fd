"""The networks: generator, discriminator, their averages, and the perceptual loss's feature network."""
