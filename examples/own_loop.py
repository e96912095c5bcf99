"""A training loop of your own, in the manner of CleanRL's: A2C on FrozenLake, with a teacher in five lines.

`PYTHONPATH=examples teacher serve --port 8000 --teacher value_iteration:FrozenLake`, and
`python examples/own_loop.py http://127.0.0.1:8000`
"""

import sys

import gymnasium
import numpy as np
import torch

from student.labels.own_loop import TeacherLabels  # teacher

N, STEPS, GAMMA = 8, 16, 0.99
envs = [gymnasium.make("FrozenLake-v1", is_slippery=False, render_mode="rgb_array") for _ in range(N)]
torch.manual_seed(1)
policy, critic = torch.nn.Embedding(16, 4), torch.nn.Embedding(16, 1)
optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=0.1)
labels = TeacherLabels(sys.argv[1], task="frozen_lake", actions=("left", "down", "right", "up"))  # teacher
obs = np.array([env.reset(seed=i)[0] for i, env in enumerate(envs)])
returns: list[float] = []
for update in range(100):
    states, actions, rewards, ends = [], [], [], []
    for _ in range(STEPS):
        labels.see(obs, lambda i: envs[i].render())  # teacher
        action = torch.distributions.Categorical(logits=policy(torch.from_numpy(obs))).sample().numpy()
        states.append(obs.copy())
        steps = [env.step(int(each)) for env, each in zip(envs, action, strict=True)]
        for i, (after, reward, terminated, truncated, _) in enumerate(steps):
            obs[i] = envs[i].reset()[0] if terminated or truncated else after
            if terminated or truncated:
                returns.append(float(reward))
        actions.append(action)
        rewards.append([step[1] for step in steps])
        ends.append([step[2] or step[3] for step in steps])
    following = critic(torch.from_numpy(obs)).squeeze(1).detach().numpy()
    targets = np.zeros((STEPS, N), np.float32)
    for t in reversed(range(STEPS)):
        following = np.array(rewards[t]) + GAMMA * following * ~np.array(ends[t])
        targets[t] = following
    seen, taken = torch.from_numpy(np.concatenate(states)), torch.from_numpy(np.concatenate(actions))
    logits, values = policy(seen), critic(seen).squeeze(1)
    advantages = torch.from_numpy(targets.ravel()) - values
    log_probs = logits.log_softmax(1).gather(1, taken[:, None]).squeeze(1)
    loss = -(advantages.detach() * log_probs).mean() + 0.5 * advantages.pow(2).mean()
    loss = loss + max(1 - update / 50, 0) * labels.kl(np.concatenate(states), logits)  # teacher
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if update % 10 == 9:
        print(f"{(update + 1) * STEPS * N:6} frames: return {np.mean(returns[-50:] or [0]):.2f}")
print(f"{labels.asked + labels.stored} questions")
labels.close()  # teacher
