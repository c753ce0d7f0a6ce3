"""What several forecasters share: patches, attention, the encoder of mixture layers, heads and distributions."""
