"""PyTorch's side of `benchmarks.meta_step`: second-order MAML, written with care.

Two forms: "loop", a Python loop over tasks with `autograd.grad(create_graph=True)`,
and "func", `torch.func` with `vmap` over tasks. Started by `benchmarks.meta_step`
under an interpreter that has PyTorch. Reads one JSON request per line from stdin,

    {"setting": {...}, "form": "loop", "seconds": 5.0}

runs meta-steps of that form for that long, and answers with one JSON line.
"""

import json
import sys
import time

import torch
from torch.nn import functional as F

INNER_LR = 0.1


def init_params(way, filters, stride, size, channels):
  generator = torch.Generator().manual_seed(0)

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


def apply(params, x, stride):
  for block in range(4):
    # No bias, as in jsharp's network: the normalisation would take it out.
    x = F.conv2d(x, params[f"kernel_{block}"], stride=stride, padding=1)
    scale, offset = params[f"scale_{block}"], params[f"offset_{block}"]
    x = F.relu(F.batch_norm(x, None, None, scale, offset, training=True))
    if stride == 1:
      x = F.max_pool2d(x, 2)
  x = x.flatten(1) if stride == 1 else x.mean((2, 3))
  return F.linear(x, params["head_kernel"], params["head_bias"])


def make_tasks(setting):
  way, size, channels = setting["way"], setting["size"], setting["channels"]
  generator = torch.Generator().manual_seed(0)

  def batch(shot):
    shape = (setting["num_tasks"], way * shot, channels, size, size)
    labels = torch.arange(way).repeat_interleave(shot)
    inputs = torch.rand(shape, generator=generator)
    return inputs, labels.expand(setting["num_tasks"], -1).contiguous()

  return *batch(setting["shot"]), *batch(setting["query_shot"])


def loop_step(params, optimizer, setting):
  """One task after another; each backward pass frees its graph at once."""
  names, leaves = list(params), list(params.values())
  stride, num_tasks = setting["stride"], setting["num_tasks"]

  def step(tasks):
    optimizer.zero_grad()
    for support_x, support_y, query_x, query_y in zip(*tasks, strict=True):
      adapted = leaves
      for _ in range(setting["inner_steps"]):
        logits = apply(dict(zip(names, adapted, strict=True)), support_x, stride)
        loss = F.cross_entropy(logits, support_y)
        grads = torch.autograd.grad(loss, adapted, create_graph=True)
        adapted = [p - INNER_LR * g for p, g in zip(adapted, grads, strict=True)]
      logits = apply(dict(zip(names, adapted, strict=True)), query_x, stride)
      (F.cross_entropy(logits, query_y) / num_tasks).backward()
    optimizer.step()

  return step


def func_step(params, optimizer, setting):
  """`torch.func`: vmap of the per-task gradient."""
  stride = setting["stride"]

  def loss_fn(params, x, y):
    return F.cross_entropy(apply(params, x, stride), y)

  def task_loss(params, support_x, support_y, query_x, query_y):
    for _ in range(setting["inner_steps"]):
      grads = torch.func.grad(loss_fn)(params, support_x, support_y)
      params = {name: params[name] - INNER_LR * grads[name] for name in params}
    return loss_fn(params, query_x, query_y)

  mapped = torch.func.vmap(torch.func.grad(task_loss), in_dims=(None, 0, 0, 0, 0))

  def step(tasks):
    grads = mapped({k: p.detach() for k, p in params.items()}, *tasks)
    for name, param in params.items():
      param.grad = grads[name].mean(0)
    optimizer.step()

  return step


FORMS = {"loop": loop_step, "func": func_step}


def make_step(setting, form):
  keys = ("way", "filters", "stride", "size", "channels")
  params = init_params(*(setting[key] for key in keys))
  optimizer = torch.optim.Adam(params.values(), lr=1e-3)
  step, tasks = FORMS[form](params, optimizer, setting), make_tasks(setting)
  return lambda: step(tasks)


def main():
  torch.set_num_threads(int(sys.argv[1]))
  versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
  print(json.dumps(versions), flush=True)
  steps = {}
  for line in sys.stdin:
    request = json.loads(line)
    setting, form = request["setting"], request["form"]
    key = (setting["name"], form)
    if key not in steps:
      steps[key] = make_step(setting, form)
      steps[key]()
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < request["seconds"]:
      steps[key]()
      count += 1
    seconds = time.perf_counter() - start
    print(json.dumps(count * setting["num_tasks"] / seconds), flush=True)


if __name__ == "__main__":
  main()
