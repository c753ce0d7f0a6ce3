"""The MoE core: routers, expert banks, shared experts, balancers and the layer that joins them."""

from zoo.moe.balance import Balancer, Balancers
from zoo.moe.layer import MoE, MoEConfig
from zoo.moe.router import give
from zoo.moe.types import RouteContext, RouterOutput, Routing

__all__ = ["Balancer", "Balancers", "MoE", "MoEConfig", "RouteContext", "RouterOutput", "Routing", "give"]
