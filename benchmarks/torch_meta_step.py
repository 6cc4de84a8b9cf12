"""PyTorch's side of `benchmarks.meta_step`: the same meta-steps, written with care.

Three forms: "loop", a Python loop over tasks with `autograd.grad(create_graph=True)`,
"func", `torch.func` with `vmap` over tasks, and "higher", MAML by the library of that
name, where it is installed. Started by `benchmarks.meta_step`
under an interpreter that has PyTorch. Reads one JSON request per line from stdin,

    {"setting": {...}, "algorithm": "maml", "form": "loop", "amount": 5.0,
     "precision": "float32"}

runs meta-steps of that form for `amount` seconds, and answers with one JSON line:
tasks/s, or an object with the message of an error. "tf32" allows TF32 in products and
convolutions, and "bfloat16" computes the network in bfloat16 with parameters, gradients
and losses in float32, as jsharp does. The form "error" takes the meta-gradients of
`amount` tasks, in float32 and in float64, and answers with the lengths of their
differences relative to the latter's.
"""

import contextlib
import json
import sys
import time

import torch
from torch.nn import functional as F

INNER_LR, OUTER_LR, RHO = 0.1, 1e-3, 5e-4
COMPUTED_IN = {"dtype": None}


@contextlib.contextmanager
def computing_in(precision):
  """Sets the precision of products and convolutions."""
  torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
  torch.backends.cudnn.allow_tf32 = precision == "tf32"
  COMPUTED_IN["dtype"] = torch.bfloat16 if precision == "bfloat16" else None
  try:
    yield
  finally:
    COMPUTED_IN["dtype"] = None


def cast(tensors):
  """The tensors in the dtype that the network is computed in."""
  dtype = COMPUTED_IN["dtype"]
  return tensors if dtype is None else [x.to(dtype) for x in tensors]


def init_params(way, filters, stride, size, channels, seed=0):
  generator = torch.Generator().manual_seed(seed)

  def glorot(*shape, fan):
    limit = (6.0 / fan) ** 0.5
    return torch.rand(shape, generator=generator) * 2 * limit - limit

  params = {}
  for block in range(4):
    c = channels if block == 0 else filters
    params[f"kernel_{block}"] = glorot(filters, c, 3, 3, fan=9 * (c + filters))
    params[f"scale_{block}"] = torch.ones(filters)
    params[f"offset_{block}"] = torch.zeros(filters)
  features = filters * (size // 16) ** 2 if stride == 1 else filters
  params["head_kernel"] = glorot(way, features, fan=features + way)
  params["head_bias"] = torch.zeros(way)
  return {name: value.requires_grad_() for name, value in params.items()}


def body(params, x, stride):
  for block in range(4):
    # No bias, as in jsharp's network: normalisation would remove it.
    names = [f"{name}_{block}" for name in ("kernel", "scale", "offset")]
    x, kernel, scale, offset = cast([x, *(params[name] for name in names)])
    x = F.conv2d(x, kernel, stride=stride, padding=1)
    x = F.relu(F.batch_norm(x, None, None, scale, offset, training=True))
    if stride == 1:
      x = F.max_pool2d(x, 2)
  return x.flatten(1) if stride == 1 else x.mean((2, 3))


def head(params, features):
  operands = cast([features, params["head_kernel"], params["head_bias"]])
  logits = F.linear(*operands)
  return logits if COMPUTED_IN["dtype"] is None else logits.float()


def make_tasks(setting, seed=0):
  way, size, channels = setting["way"], setting["size"], setting["channels"]
  generator = torch.Generator().manual_seed(seed)

  def batch(shot):
    shape = (setting["num_tasks"], way * shot, channels, size, size)
    labels = torch.arange(way).repeat_interleave(shot)
    inputs = torch.rand(shape, generator=generator)
    return inputs, labels.expand(setting["num_tasks"], -1).contiguous()

  return *batch(setting["shot"]), *batch(setting["query_shot"])


def adapt(algorithm, params, x, y, setting, grad):
  """The inner loop; `grad(loss_fn, params) -> grads` of a dict of tensors."""
  only_head = algorithm == "anil"
  features = body(params, x, setting["stride"]) if only_head else None
  adapted = {
    name: p for name, p in params.items() if not only_head or name.startswith("head")
  }

  def loss_fn(part):
    seen = features if only_head else body(part, x, setting["stride"])
    return F.cross_entropy(head(part, seen), y)

  for _ in range(setting["inner_steps"]):
    grads = grad(loss_fn, adapted)
    if algorithm == "sharp_maml_both":
      grads = grad(loss_fn, perturbed(adapted, grads))
    if algorithm == "fomaml":
      grads = {name: g.detach() for name, g in grads.items()}
    adapted = {name: adapted[name] - INNER_LR * grads[name] for name in adapted}
  return {**params, **adapted}


def perturbed(params, grads):
  length = torch.sqrt(sum((g * g).sum() for g in grads.values()))
  return {name: params[name] + RHO * grads[name] / length for name in params}


def loop_gradient(algorithm, setting):
  """One task after another; each backward pass frees its graph at once."""

  def grad(loss_fn, params):
    leaves = list(params.values())
    second_order = algorithm != "fomaml"
    grads = torch.autograd.grad(loss_fn(params), leaves, create_graph=second_order)
    return dict(zip(params, grads, strict=True))

  def meta_gradient(params, tasks):
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    for support_x, support_y, query_x, query_y in zip(*tasks, strict=True):
      adapted = adapt(algorithm, params, support_x, support_y, setting, grad)
      logits = head(adapted, body(adapted, query_x, setting["stride"]))
      (F.cross_entropy(logits, query_y) / setting["num_tasks"]).backward()
    return {name: p.grad for name, p in params.items()}

  return meta_gradient


def func_gradient(algorithm, setting):
  """`torch.func`: vmap of the per-task gradient."""

  def grad(loss_fn, params):
    return torch.func.grad(loss_fn)(params)

  def task_loss(params, support_x, support_y, query_x, query_y):
    adapted = adapt(algorithm, params, support_x, support_y, setting, grad)
    logits = head(adapted, body(adapted, query_x, setting["stride"]))
    return F.cross_entropy(logits, query_y)

  mapped = torch.func.vmap(torch.func.grad(task_loss), in_dims=(None, 0, 0, 0, 0))

  def meta_gradient(params, tasks):
    grads = mapped({name: p.detach() for name, p in params.items()}, *tasks)
    return {name: g.mean(0) for name, g in grads.items()}

  return meta_gradient


class Network(torch.nn.Module):
  """The same network as a module, as `higher` needs it."""

  def __init__(self, params, stride):
    super().__init__()
    for name, value in params.items():
      self.register_parameter(name, torch.nn.Parameter(value.detach().clone()))
    self.stride = stride

  def forward(self, x):
    """`[n, way]` from `[n, channels, height, width]`."""
    params = dict(self.named_parameters())
    return head(params, body(params, x, self.stride))


def higher_gradient(algorithm, setting):
  """`higher`: a copy of the module and its optimizer that can be differentiated."""
  import higher

  assert algorithm == "maml", algorithm

  def meta_gradient(params, tasks):
    network = Network(params, setting["stride"])
    optimizer = torch.optim.SGD(network.parameters(), lr=INNER_LR)
    for support_x, support_y, query_x, query_y in zip(*tasks, strict=True):
      copy = higher.innerloop_ctx(network, optimizer, copy_initial_weights=False)
      with copy as (adapted, inner):
        for _ in range(setting["inner_steps"]):
          inner.step(F.cross_entropy(adapted(support_x), support_y))
        loss = F.cross_entropy(adapted(query_x), query_y)
        (loss / setting["num_tasks"]).backward()
    return {name: p.grad for name, p in network.named_parameters()}

  return meta_gradient


FORMS = {"loop": loop_gradient, "func": func_gradient, "higher": higher_gradient}


def errors(setting, algorithm, num_tasks):
  """Errors of float32 meta-gradients, for tasks and parameters of several seeds."""
  meta_gradient = loop_gradient(algorithm, setting)

  def vector(params, tasks, dtype):
    params = {name: p.detach().to(dtype) for name, p in params.items()}
    tasks = [x.to(dtype) if x.is_floating_point() else x for x in tasks]
    grads = meta_gradient(params, tasks)
    return torch.cat([g.flatten() for g in grads.values()]).double()

  found = []
  for seed in range(num_tasks):
    params, tasks = start(setting, seed), make_tasks(setting, seed)
    exact = vector(params, tasks, torch.float64)
    difference = vector(params, tasks, torch.float32) - exact
    found.append(float(difference.norm() / exact.norm()))
  return found


def start(setting, seed=0):
  keys = ("way", "filters", "stride", "size", "channels")
  return init_params(**{key: setting[key] for key in keys}, seed=seed)


def make_step(setting, algorithm, form, device):
  params = {
    name: p.detach().to(device).requires_grad_() for name, p in start(setting).items()
  }
  tasks = tuple(x.to(device) for x in make_tasks(setting))
  optimizer = torch.optim.Adam(params.values(), lr=OUTER_LR)
  meta_gradient = FORMS[form](algorithm, setting)

  def step():
    grads = meta_gradient(params, tasks)
    if algorithm == "sharp_maml_both":
      grads = meta_gradient(perturbed(params, grads), tasks)
    for name, param in params.items():
      param.grad = grads[name]
    optimizer.step()
    if device == "cuda":
      torch.cuda.synchronize()

  return step


def answer(request, steps, device):
  """Tasks per second, or errors of meta-gradients."""
  setting, form = request["setting"], request["form"]
  if form == "error":
    return errors(setting, request["algorithm"], int(request["amount"]))
  precision = request["precision"]
  key = (json.dumps(setting), request["algorithm"], form, precision)
  with computing_in(precision):
    if key not in steps:
      if device == "cuda":  # Its memory is needed for larger settings.
        steps.clear()
        torch.cuda.empty_cache()
      step = make_step(setting, request["algorithm"], form, device)
      step()
      steps[key] = step
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < request["amount"]:
      steps[key]()
      count += 1
    seconds = time.perf_counter() - start
  return count * setting["num_tasks"] / seconds


def main():
  threads, device = int(sys.argv[1]), sys.argv[2]
  torch.set_num_threads(threads)
  torch.backends.cudnn.benchmark = True
  versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
  print(json.dumps(versions), flush=True)
  steps: dict = {}
  for line in sys.stdin:
    try:
      reply = answer(json.loads(line), steps, device)
    except Exception as error:
      reply = {"error": f"{type(error).__name__}: {error}"[:1000]}
    print(json.dumps(reply), flush=True)


if __name__ == "__main__":
  main()
