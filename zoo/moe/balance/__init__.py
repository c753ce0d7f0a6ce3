"""Balancers: what keeps the experts in use."""

from zoo.moe.balance.base import Balancer, Balancers

__all__ = ["Balancer", "Balancers"]
