"""Write text with a language model, be scored, and learn: reinforcement learning from human feedback.

The files here are the commands of ``textenv``, and the folders its groups of commands: ``reward/train.py`` is ``textenv
reward train``. See ``textenv.commands.base``.
"""
