"""The products of moe-bench grouped in PyTorch: grouped_mm, and one dense product of the same FLOPs."""

import common
import torch


def random(*shape, like):
    return torch.empty(shape, dtype=torch.float32, device=like.device).uniform_(-1, 1).to(like.dtype)


class Grouped:
    """Both contestants of one product."""

    def set_up(self, request):
        self.contestants = {}
        self.device = common.prepare(request)
        like = torch.empty(0, dtype=common.DTYPES[request["dtype"]], device=self.device)
        rows, left, right = sum(request["loads"]), request["left"], request["right"]
        ends = torch.tensor(request["loads"], device=self.device).cumsum(0).to(torch.int32)
        lhs = random(rows, left, like=like)
        if request["product"] == "outer":
            rhs = random(rows, right, like=like)
            self.contestants["torch matmul, dense"] = lambda: lhs.t() @ rhs
            grouped = lambda: common.grouped_mm(lhs.t(), rhs, offs=ends)
        else:
            turned = request["product"] == "transposed"
            shape = (right, left) if turned else (left, right)
            one, all_ = random(*shape, like=like), random(len(request["loads"]), *shape, like=like)
            if turned:
                one, all_ = one.t(), all_.transpose(1, 2)
            rhs = all_
            self.contestants["torch matmul, dense"] = lambda: lhs @ one
            grouped = lambda: common.grouped_mm(lhs, rhs, offs=ends)
        unable = {}
        try:
            self.verify(grouped(), lhs, rhs, request["loads"], request["product"] == "outer")
            self.contestants["torch grouped_mm"] = grouped
        except RuntimeError as error:
            unable["torch grouped_mm"] = " ".join(str(error).split())[:200]
        return {"names": list(self.contestants), "unable": unable, **common.versions()}

    @staticmethod
    def verify(found, lhs, rhs, loads, outer):
        """The share of the last expert that has rows, by itself."""
        expert = max(e for e, load in enumerate(loads) if load > 0)
        begin = sum(loads[:expert])
        rows = slice(begin, begin + loads[expert])
        if outer:
            found, expected = found[expert], lhs[rows].t() @ rhs[rows]
        else:
            found, expected = found[rows], lhs[rows] @ rhs[expert]
        difference, largest = (found.float() - expected.float()).abs().max(), expected.float().abs().max()
        if not difference <= 0.01 * largest:
            raise ValueError(f"grouped_mm is {difference} off of at most {largest}")

    def run(self, request):
        action = self.contestants[request["name"]]

        def repeated():
            for _ in range(request["repeats"]):
                action()

        time, _ = common.timed(self.device, repeated)
        return time


if __name__ == "__main__":
    grouped = Grouped()
    common.converse({"set up": grouped.set_up, "run": grouped.run})
