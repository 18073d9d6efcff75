"""Plan many prompts jointly, look at the quote and the front, then buy: runs without a key."""

import tempfile

import numpy as np

from optllm_router import OptLLM, Usage
from optllm_router.evaluation.demo import simulated_candidates
from optllm_router.simulation import SIMULATED_MODELS, SimulationServer, grade, make_tasks


def main() -> None:
    rng = np.random.default_rng(2)
    graded, tasks = make_tasks(150, rng), make_tasks(60, rng)
    with SimulationServer() as server, tempfile.TemporaryDirectory() as folder:
        candidates = simulated_candidates(server.base_url)
        with OptLLM(
            candidates, budget="0.05 USD", store=f"sqlite:///{folder}/plan.db", seed=2
        ) as client:
            # Graded answers from an earlier project; here, the simulated models' own.
            replies = [
                (task, model.name, model.reply(task.prompt))
                for task in graded
                for model in SIMULATED_MODELS
            ]
            client.learn((task.prompt, name, grade(task, r.text)) for task, name, r in replies)
            client.observe(
                (task.prompt, name, Usage(r.prompt_tokens, r.completion_tokens))
                for task, name, r in replies
            )
            client.wait_for_refit()
            plan = client.plan([task.prompt for task in tasks])
            print(plan.quote)
            for usd in np.linspace(plan.front.cost[0], plan.front.cost[-1], 5):
                print(f"  {usd:.4f} USD buys {plan.front.at_budget(usd).success:.1f} successes")
            answers = plan.apply()
            right = sum(
                grade(task, answer.choices[0].message.content)
                for task, answer in zip(tasks, answers, strict=True)
            )
            print(f"{right:.0f} of {len(tasks)} right; {client.balance}")


if __name__ == "__main__":
    main()
