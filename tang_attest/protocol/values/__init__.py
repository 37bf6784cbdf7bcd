"""Values that the protocol is made of: PCRs, points, encodings, labels, bounds."""
