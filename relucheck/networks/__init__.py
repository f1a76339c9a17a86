"""Networks to compare: multilayer perceptrons, convolutional and residual ones, and generated examples."""
