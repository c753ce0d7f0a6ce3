"""The manifest of the core's own parts: same form as a plugin's, names without a prefix."""

from zoo.core import actions, balancing, experts, routing, stack
from zoo.spec import API, Plugin

plugin = Plugin(api=API, parts=routing.PARTS + experts.PARTS + balancing.PARTS + stack.PARTS + actions.PARTS)
