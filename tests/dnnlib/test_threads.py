"""Threads: what is set for them, what is left alone, and the limits of control groups."""

import os
import subprocess
import sys

import pytest

from dnnlib.threads import SPINS, cpu_quota, settings


@pytest.mark.parametrize('environment, cpus, quota, expected', [
    ({}, 8, None, {'GOMP_SPINCOUNT': '10000'}),
    ({}, 8, 8.0, {'GOMP_SPINCOUNT': '10000'}),
    ({}, 8, 2.5, {'GOMP_SPINCOUNT': '10000', 'OMP_NUM_THREADS': '3'}),
    ({}, 8, 0.1, {'GOMP_SPINCOUNT': '10000', 'OMP_NUM_THREADS': '1'}),
    ({}, None, 2.0, {'GOMP_SPINCOUNT': '10000', 'OMP_NUM_THREADS': '2'}),
    ({'OMP_NUM_THREADS': '1'}, 8, 2.0, {'GOMP_SPINCOUNT': '10000'}),
    ({'MKL_NUM_THREADS': '4'}, 8, 2.0, {'GOMP_SPINCOUNT': '10000'}),
    ({'OMP_WAIT_POLICY': 'active'}, 8, 2.0, {'OMP_NUM_THREADS': '2'}),
    ({'GOMP_SPINCOUNT': '5', 'OMP_NUM_THREADS': '9'}, 8, 2.0, {}),
    ({'KMP_BLOCKTIME': '0'}, 8, None, {}),
    ({'OMP_WAIT_POLICY': ''}, 8, None, {'GOMP_SPINCOUNT': '10000'}),
])
def test_the_user_decides_and_else_the_quota(environment, cpus, quota, expected):
    assert settings(environment, cpus, quota) == expected


@pytest.mark.parametrize('groups, files, quota', [
    ('0::/\n', {'sys/fs/cgroup/cpu.max': '200000 100000\n'}, 2.0),
    ('0::/\n', {'sys/fs/cgroup/cpu.max': 'max 100000\n'}, None),
    # the lowest of the group and those above it
    ('0::/a/b\n', {'sys/fs/cgroup/a/cpu.max': '150000 100000', 'sys/fs/cgroup/a/b/cpu.max':
                   '400000 100000'}, 1.5),
    ('4:memory:/x\n3:cpu,cpuacct:/job\n', {'sys/fs/cgroup/cpu/job/cpu.cfs_quota_us': '50000\n',
                                           'sys/fs/cgroup/cpu/job/cpu.cfs_period_us': '100000\n'},
     0.5),
    ('1:cpu:/\n', {'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '-1\n',
                   'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n'}, None),
    ('0::/\n', {'sys/fs/cgroup/cpu.max': '0 100000'}, None),
    ('0::/\n', {'sys/fs/cgroup/cpu.max': '1 2 3'}, None),
    ('0::/../../x\nnonsense\n', {}, None),
])
def test_the_quota_of_control_groups(groups, files, quota, tmp_path):
    for name, text in {'proc/self/cgroup': groups, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpu_quota(tmp_path) == quota


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


def test_a_command_sets_it_before_anything_is_computed():
    """The library reads its variables once, when it is loaded, so the order matters."""
    code = ('import sys, os; assert "torch" not in sys.modules; import dnnlib.early; '
            'print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules, "click" in sys.modules)')
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')}
    result = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True,
                            text=True, check=True)
    assert result.stdout == f'{SPINS} False False\n'
