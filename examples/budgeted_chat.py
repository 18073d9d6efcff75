"""Ask, grade, learn, stay within a cap: against simulated models, so it runs without a key."""

import tempfile

import numpy as np

from optllm_router import BudgetExceededError, OptLLM
from optllm_router.simulation import SIMULATED_MODELS, SimulationServer, grade, make_tasks


def main() -> None:
    with SimulationServer() as server, tempfile.TemporaryDirectory() as folder:
        models = [
            {
                "model_name": model.name,
                "litellm_params": {
                    "model": f"openai/{model.name}",
                    "api_base": server.base_url,
                    "api_key": "unused",
                    "max_tokens": 300,
                    "input_cost_per_token": f"{model.price_prompt_usd_per_mtok}e-6",
                    "output_cost_per_token": f"{model.price_completion_usd_per_mtok}e-6",
                },
            }
            for model in SIMULATED_MODELS
        ]
        store = f"sqlite:///{folder}/chat.db"
        with OptLLM(models, budget="0.02 USD", store=store, seed=1) as client:
            right = asked = 0
            for task in make_tasks(50, np.random.default_rng(1)):
                try:
                    answer = client.chat.completions.create(
                        model="auto", messages=[{"role": "user", "content": task.prompt}]
                    )
                except BudgetExceededError as error:
                    print(error)
                    break
                score = grade(task, answer.choices[0].message.content or "")
                client.feedback.create(answer.id, score=score)
                asked, right = asked + 1, right + int(score)
            print(f"{right} of {asked} right; {client.balance}")


if __name__ == "__main__":
    main()
