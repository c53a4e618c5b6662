"""Which nodes the workers of a trial get: decided for each attempt, from what the cluster has then.

A trial starts on nodes that have room for all of its workers, or waits as a whole; the workers of one feature group are
on one node, whose links are the fastest. Ray Train's own elasticity takes any number of workers on any nodes; a mesh
with a feature axis has no use for that, so the nodes are chosen here and given to Ray Train as labels (`placer`). When
a node is lost or is about to go, the attempt ends and the next one is placed anew, on another mesh if need be.
"""
