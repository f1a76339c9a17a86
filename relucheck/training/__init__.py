"""The paired-ensemble engine: trains members that differ in their subgradient alone, beside a control."""
