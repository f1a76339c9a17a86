"""Running other people's code so that nothing else is affected."""
