"""Files of the network on `/data`: downloaded once, resumed, verified."""
