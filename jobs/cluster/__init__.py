"""The login node and the batch shell: sites, Slurm, plan, checks, submit, requeue, status.

Never imports torch, numpy or PIL.
"""
