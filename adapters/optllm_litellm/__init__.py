"""LiteLLM's own ``Router``, with optllm_router choosing the deployment.

::

    import litellm
    from optllm_litellm import OptLLMRoutingStrategy

    router = litellm.Router(model_list=[
        {"model_name": "auto", "litellm_params": {"model": "openai/gpt-4o"}},
        {"model_name": "auto", "litellm_params": {"model": "openai/gpt-4o-mini"}},
    ])
    strategy = OptLLMRoutingStrategy(router, policy="match_best").install()
    answer = router.completion(model="auto", messages=[...])
    strategy.learn([...], "openai/gpt-4o-mini", score=1.0)

It decides and learns. It keeps no ledger (for a budget that holds, use ``optllm_router.OptLLM``)
and does not know litellm's cooldowns: combine it with litellm's retries and fallbacks.
"""

from optllm_litellm._strategy import OptLLMRoutingStrategy

__all__ = ["OptLLMRoutingStrategy"]
