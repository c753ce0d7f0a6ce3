"""What the models of this plugin are composed of."""
