"""Proto-MAML in the form of the conformance table's rows."""

from jsharp.algorithms import WithHead, predict_with_head, proto_maml
from tests.algorithms.without_inner_loop import WAY, embedding, loss_of_seen_classes


class WithOwnHead:
  """Takes what a row takes; what it adapts is the model's parameters and a head."""

  def __call__(
    self,
    loss_fn,
    inner_optimizer,
    outer_optimizer,
    *,
    num_inner_steps,
    **options,
  ):
    del loss_fn  # Its own: no linear head of the model is adapted.
    algorithm = proto_maml(
      embedding,
      inner_optimizer,
      outer_optimizer,
      way=WAY,
      num_inner_steps=num_inner_steps,
      query_loss_fn=_loss,
      **options,
    )

    def adapt(params, support, **options):
      params, weights, bias, present = algorithm.adapt(params, support, **options)
      own = {"w": weights, "b": bias, "present": present.astype(bias.dtype)}
      return params | {"own_head": own}

    return algorithm._replace(adapt=adapt)

  def query_loss_fn(self, adapted, task):
    own = adapted["own_head"]
    with_head = WithHead(adapted, own["w"], own["b"], own["present"] > 0)
    return _loss(with_head, task)


def _loss(adapted, task):
  logits = predict_with_head(embedding)(adapted, task.query.inputs)
  return loss_of_seen_classes(logits, task)


ROWS = {"proto_maml": WithOwnHead()}
