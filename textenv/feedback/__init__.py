"""Human feedback: who compared what with what, kept so that nothing is lost, and the page on which people do it."""
