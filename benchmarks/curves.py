"""The samplers of the paper's Figures 2 and 4 that are compared, as options of generate.py."""

from collections.abc import Callable
from dataclasses import dataclass

# One range for all, so that all of them head for the same images. Its lower end is close to VP's
# own 0.0105, and the noise that the last step of VE leaves, half of it, is below one level of 8
# bits.
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0
RANGE = f'--sigma_min={SIGMA_MIN:g} --sigma_max={SIGMA_MAX:g}'
EXACT = f'--solver=heun --steps=512 {RANGE}'
BUDGETS = (2, 4, 8, 16, 32, 64, 128, 256)
QUICK = (4, 16, 64)
STOCHASTIC_LIMIT = 128   # evaluations: stochastic samplers have arrived long before

Point = dict[str, float]     # what was measured of one command
Results = dict[str, Point]   # command, 'floor' or EXACT -> what was measured
Steps = Callable[[int], int]   # evaluations that may be spent -> steps


def one_each(budget: int) -> int:
    """Return the number of steps of a method that takes one evaluation a step."""
    return budget


def heun(budget: int) -> int:
    """Return the number of steps N of Heun's method, which costs 2N − 1 evaluations."""
    return budget // 2


def adams(budget: int) -> int:
    """Return the number of steps N of Adams' method of order 3: N + 2 evaluations (3 for N = 2)."""
    return budget - 2


@dataclass(frozen=True)
class Curve:
    """A sampler, given as options of generate.py, and the look of its line in the picture.

    steps       the number of steps for a number of evaluations; None for samplers that choose
                their steps, which have instead:
    tolerances  values of the option `knob`
    """
    name: str
    options: str
    colour: str
    marker: str = 'o'
    line: str = '-'
    steps: Steps | None = None
    knob: str = ''
    tolerances: tuple[float, ...] = ()

    def commands(self, limit: int, quick: bool) -> list[tuple[int | float, str]]:
        """List (budget or tolerance, options of generate.py) for each point of the curve."""
        if self.steps is None:
            values = self.tolerances[::2] if quick else self.tolerances
            knobs = [(value, ' '.join(f'{knob}={value:g}' for knob in self.knob.split()))
                     for value in values]
        else:
            budgets = [budget for budget in (QUICK if quick else BUDGETS) if budget <= limit]
            counts = {budget: self.steps(budget) for budget in budgets}
            knobs = [(budget, f'--steps={count}') for budget, count in counts.items() if count >= 2]
        return [(value, f'{self.options} {knob} {RANGE}'.strip()) for value, knob in knobs]


# The colours of the paper's Figure 2: blue for original samplers, orange for Euler in their frames,
# green for Heun there, red for Heun with σ = t. Circles are VP, squares VE, and triangles the frame
# σ = t.
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, GREY, BLACK = (
    '#3b6ea5', '#d98324', '#4d9a57', '#b5302c', '#7a5195', '#8c6d4f', '#8a8a8a', '#222222')

HEUN = Curve('Heun, ρ = 7, σ = t (EDM)', '--solver=heun', RED, '^', steps=heun)
VP_ORIGINAL = Curve('VP, original', '--sampler=em --deterministic=true --original=true', BLUE,
                    steps=one_each)
VP_EULER = Curve('Euler, VP', '--family=vp', ORANGE, steps=one_each)
VE_EULER = Curve('Euler, VE (also the original)', '--family=ve', ORANGE, 's', steps=one_each)
DDIM = Curve('DDIM, iDDPM levels', '--sampler=ddim', BLUE, '^', steps=one_each)
VP_HEUN = Curve('Heun, ρ = 7, VP frame', '--family=vp --solver=heun --disc=edm', GREEN, steps=heun)
VE_HEUN = Curve('Heun, ρ = 7, VE frame', '--family=ve --solver=heun --disc=edm', GREEN, 's',
                steps=heun)
EULER = Curve('Euler, ρ = 7, σ = t', '--solver=euler', GREY, '^', steps=one_each)
VP_STEPS = Curve('Heun, VP steps, σ = t', '--solver=heun --disc=vp', RED, 'o', ':', steps=heun)
EULER_VP_STEPS = Curve('Euler, VP steps, σ = t', '--solver=euler --disc=vp', GREY, 'o', ':',
                       steps=one_each)
MULTISTEP = Curve('DPM-Solver++(2M), ρ = 7', '--solver=dpmpp-2m', PURPLE, 'D', steps=one_each)
ADAMS = Curve('Adams, ρ = 7, σ = t', '--solver=adams', BROWN, 'v', steps=adams)
RK45 = Curve('RK45, σ = t', '--sampler=rk45', BLACK, 'x', '--', knob='--rtol --atol',
             tolerances=(1, 0.1, 0.03, 0.01))
DETERMINISTIC = (VP_ORIGINAL, VP_EULER, VE_EULER, DDIM, VP_HEUN, VE_HEUN, EULER, EULER_VP_STEPS,
                 HEUN, VP_STEPS, MULTISTEP, ADAMS, RK45)

EM_ORIGINAL = Curve('Euler–Maruyama, VP, original', '--sampler=em --original=true', BLUE, 'o', '--',
                    steps=one_each)
EM = Curve('Euler–Maruyama, VP', '--sampler=em', BLUE, steps=one_each)
PC = Curve('Predictor–corrector, VE', '--sampler=pc', ORANGE, 's', steps=heun)
SMALL = Curve('Ancestral, small variance', '--sampler=ancestral --variance=small', GREEN, '^',
              steps=one_each)
LARGE = Curve('Ancestral, large variance', '--sampler=ancestral --variance=large', GREEN, 'v', '--',
              steps=one_each)
SDE = Curve('Euler–Maruyama, ρ = 7, σ = t', '--sampler=sde', GREY, '^', steps=one_each)
CHURN_2 = Curve('Alg. 2, S_churn = 2', '--S_churn=2', PURPLE, '^', ':', steps=heun)
CHURN_10 = Curve('Alg. 2, S_churn = 10', '--S_churn=10', PURPLE, 's', '--', steps=heun)
CHURN_40 = Curve('Alg. 2, S_churn = 40', '--S_churn=40', PURPLE, 'D', steps=heun)
CHURN_LIMITED = Curve('Alg. 2, S_churn = 40, limits',
                      '--S_churn=40 --S_min=0.05 --S_max=50 --S_noise=1.003', BROWN, 'D',
                      steps=heun)
ADAPTIVE = Curve('Adaptive SDE, VP', '--sampler=adaptive', BLACK, 'x', '--', knob='--eps_rel',
                 tolerances=(0.5, 0.1, 0.05))
STOCHASTIC = (EM_ORIGINAL, EM, PC, SMALL, LARGE, SDE, CHURN_2, CHURN_10, CHURN_40, CHURN_LIMITED,
              ADAPTIVE)


def points(curve: Curve, results: Results) -> dict[int | float, Point]:
    """Return the measured points of a curve: {evaluations allowed, or tolerance: point}."""
    return {value: results[command] for value, command in curve.commands(max(BUDGETS), False)
            if command in results}
