"""Deep RL from human preferences between clips of behavior (Christiano et al. 2017), in any Gymnasium task."""
