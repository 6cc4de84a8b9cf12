"""PyTorch's side of `benchmarks.supervised_step`: SGD and SAM steps of two networks.

Channels last, as PyTorch recommends for convolutions on CPUs. SAM's second pass leaves
the running statistics alone, as jsharp's does. Answers the requests of
`benchmarks.torch_process.Torch`,

    {"setting": {"name": "wrn_16_4", "batch_size": 128}, "algorithm": "sam",
     "form": "eager", "amount": 5.0}

with images per second. The form "compiled" is `torch.compile` of the network.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class WideBlock(nn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.norms = nn.ModuleList([nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)])
    self.convs = nn.ModuleList(
      [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
      ]
    )
    changes = stride > 1 or inputs != outputs
    self.shortcut = (
      nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None
    )

  def forward(self, x):
    y = F.relu(self.norms[0](x))
    if self.shortcut is not None:
      x = self.shortcut(y)
    y = F.relu(self.norms[1](self.convs[0](y)))
    return x + self.convs[1](y)


class Block(nn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.stride, self.more = stride, outputs - inputs
    self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
    self.convs = nn.ModuleList(
      [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
      ]
    )

  def forward(self, x):
    y = F.relu(self.norms[0](self.convs[0](x)))
    y = self.norms[1](self.convs[1](y))
    x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
    return F.relu(x + y)


def stages(block, widths, blocks):
  layers, inputs = [], 16
  for stage, width in enumerate(widths):
    for i in range(blocks):
      layers.append(block(inputs, width, 2 if stage and not i else 1))
      inputs = width
  return nn.Sequential(*layers)


class Network(nn.Module):
  def __init__(self, body, width, norm_first):
    super().__init__()
    self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    # The norm behind the first convolution, or behind the blocks of a wide network.
    self.norm = nn.BatchNorm2d(16 if norm_first else width)
    self.body, self.norm_first = body, norm_first
    self.head = nn.Linear(width, 10)

  def forward(self, x):
    x = self.conv(x)
    if self.norm_first:
      x = self.body(F.relu(self.norm(x)))
    else:
      x = F.relu(self.norm(self.body(x)))
    return self.head(x.mean((2, 3)))


def make_network(name):
  if name == "wrn_16_4":
    return Network(stages(WideBlock, (64, 128, 256), 2), 256, norm_first=False)
  return Network(stages(Block, (16, 32, 64), 3), 64, norm_first=True)


def make_step(setting, algorithm, form):
  torch.manual_seed(0)
  network = make_network(setting["name"]).to(memory_format=torch.channels_last)
  count = sum(p.numel() for p in network.parameters())
  assert count == setting["num_parameters"], (count, setting)
  call = torch.compile(network) if form == "compiled" else network
  params = list(network.parameters())
  norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
  optimizer = torch.optim.SGD(params, 0.1, 0.9, nesterov=True, weight_decay=5e-4)
  images = torch.rand(setting["batch_size"], 3, 32, 32)
  images = images.to(memory_format=torch.channels_last)
  labels = torch.arange(setting["batch_size"]) % 10

  def differentiate():
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(call(images), labels).backward()

  def sgd():
    differentiate()
    optimizer.step()

  def sam():
    differentiate()
    with torch.no_grad():
      grads = [p.grad for p in params]
      norm = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g) for g in grads])
      )
      moved = torch._foreach_mul(grads, 0.05 / (norm + 1e-12))
      torch._foreach_add_(params, moved)
    for module in norms:
      module.momentum = 0.0
    differentiate()
    for module in norms:
      module.momentum = 0.1
    with torch.no_grad():
      torch._foreach_sub_(params, moved)
    optimizer.step()

  return {"sgd": sgd, "sam": sam}[algorithm]


def answer(request, steps):
  setting = request["setting"]
  key = (json.dumps(setting), request["algorithm"], request["form"])
  if key not in steps:
    steps[key] = make_step(setting, request["algorithm"], request["form"])
    steps[key]()
  count, start = 0, time.perf_counter()
  while count == 0 or time.perf_counter() - start < request["amount"]:
    steps[key]()
    count += 1
  return count * setting["batch_size"] / (time.perf_counter() - start)


def main():
  torch.set_num_threads(int(sys.argv[1]))
  versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
  print(json.dumps(versions), flush=True)
  steps: dict = {}
  for line in sys.stdin:
    try:
      reply = answer(json.loads(line), steps)
    except Exception as error:
      reply = {"error": f"{type(error).__name__}: {error}"[:1000]}
    print(json.dumps(reply), flush=True)


if __name__ == "__main__":
  main()
