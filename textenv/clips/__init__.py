"""Deep RL from human preferences between clips of behaviour (Christiano et al. 2017), in any Gymnasium task."""
