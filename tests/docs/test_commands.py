"""The commands in README.md and docs/*.md are parsed, and the tutorial is done word for word."""

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import checkpoint
import dataset_tool
import demo
import fid
import flow
import generate
import report
import reproduce
import train

ROOT = Path(__file__).parents[2]
PAGES = ['README.md', *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('docs/**/*.md'))]
PROGRAMS = {module.__name__: module for module in (checkpoint, dataset_tool, demo, fid, flow,
                                                   generate, report, reproduce, train)}
# What stands in some pages in place of a value.
PLACEHOLDERS = re.compile(r'(^|[ =])(\.\.\.|X\.py|FILE|N\b)')


def blocks(page, *languages):
    """The texts of the blocks of a page in these languages; '' is none."""
    text = (ROOT / page).read_text()
    found = re.findall(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands_of(page):
    """The commands in the blocks of a page that are not Python: [word, ...], whole."""
    for block in blocks(page, '', 'bash'):
        for line in block.replace('\\\n', ' ').splitlines():
            if re.match(r'(srun |torchrun |python )', line) and not PLACEHOLDERS.search(line):
                yield shlex.split(line, comments=True)


def program_of(words):
    """The name of one of our programs in a command, and its arguments; None for another."""
    for i, word in enumerate(words):
        if word.endswith('.py'):
            rest = words[i + 1:]
            return word.removesuffix('.py'), rest[1:] if rest[:1] == ['--'] else rest
    return None


def parse(name, arguments):
    """Parse arguments as the program does, without running it; raises what it would."""
    command = PROGRAMS[name].main
    if name == 'dataset_tool' and arguments[0] in dataset_tool.COMMANDS:
        command, arguments = dataset_tool.COMMANDS[arguments[0]], arguments[1:]
    while isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    try:
        command.make_context(name, list(arguments))
    except click.exceptions.Exit as done:   # of --help and --preset=list
        assert done.exit_code == 0


@pytest.mark.parametrize('page', PAGES)
def test_every_command_of_a_page_is_parsed(page):
    for words in commands_of(page):
        found = program_of(words)
        if found is not None:
            try:
                parse(*found)
            except click.UsageError as error:
                pytest.fail(f'{page}: {shlex.join(words)}: {error.format_message()}')
        elif words[:2] == ['python', '-m']:
            assert importlib.util.find_spec(words[2]), words
        else:
            pytest.fail(f'{page}: {shlex.join(words)} is none of our programs')


def test_how_many_there_are():
    """Otherwise the blocks would not be found."""
    assert sum(len(list(commands_of(page))) for page in PAGES) > 50


@pytest.mark.parametrize('command', [
    'python train.py --run=a --data=b --no-such-option=1', 'python train.py --data=b --batch=x',
    'python fid.py gen --network=a --num=-1', 'python report.py'])
def test_a_wrong_command_is_noticed(command):
    with pytest.raises(click.UsageError):
        parse(*program_of(shlex.split(command)))


# The tutorial is done word for word, but for these words, so that it takes seconds.
SHORTER = {'--duration=0.016': '--duration=0.002', '--tick=1.6': '--tick=1', '--snap=2': '--snap=1',
           '--pictures=16': '--pictures=1 --picture-steps=1',
           '--lr-rampup=0.002': '--lr-rampup=0.0002',
           '--grid=6x6': '--grid=2x2 --steps=2', '--num=374': '--num=16 --allow-mismatch',
           '--steps=10': '--steps=2',
           'network-snapshot-000016.pkl': 'network-snapshot-000002.pkl'}
TUTORIAL = 'docs/tutorial.md'


def test_the_tutorial(tmp_path, monkeypatch):
    pytest.importorskip('sklearn')
    pytest.importorskip('matplotlib')
    monkeypatch.chdir(tmp_path)
    [cutting] = blocks(TUTORIAL, 'python')
    exec(compile(cutting.replace('32)', '96)'), TUTORIAL, 'exec'), {})
    outputs, unused = [], dict(SHORTER)
    for words in commands_of(TUTORIAL):
        line = shlex.join(words)
        for long, short in SHORTER.items():
            if long in line:
                line = line.replace(long, short)
                unused.pop(long, None)
        name, arguments = program_of(shlex.split(line))
        result = CliRunner().invoke(PROGRAMS[name].main, arguments)
        assert result.exit_code == 0, f'{line}\n{result.output}'
        outputs.append(result.output)
    assert unused == {}
    converted, checked, stats, trained, reported, drawn, reference, judged = outputs
    assert 'no problems' in checked and 'suggested sigma_data: ' in stats
    assert 'Course: the untrained network has the loss ' in trained
    assert trained.splitlines()[-1] == 'Done.'
    assert reported == 'Wrote runs/photos/report.html\n'
    assert (tmp_path / 'out' / 'photos' / 'grid.png').is_file()
    assert re.fullmatch(r'\d+\.?\d*(e-?\d+)?', judged.split()[-1]), judged


def test_the_number_of_pieces_in_the_tutorial(tmp_path, monkeypatch):
    """That of the text, and of --num."""
    text = (ROOT / TUTORIAL).read_text()
    across, down = range(0, 640 - 96, 32), range(0, 427 - 96, 32)
    assert f'cuts {2 * len(across) * len(down)} pieces' in ' '.join(text.split())
    assert f'--num={2 * len(across) * len(down)} ' in text


def test_scripts_for_batch_systems_are_scripts():
    scripts = blocks('docs/cluster.md', 'bash')
    assert len(scripts) == 2
    for script in scripts:
        subprocess.run(['bash', '-n'], input=script, text=True, check=True, timeout=60)


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    """To files that exist, and to headings that they have."""
    for target in re.findall(r'\]\(([^)\s]+)\)', (ROOT / page).read_text()):
        path, _, anchor = target.partition('#')
        if '://' in target:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f'{page}: {target}'
        if anchor:
            headings = re.findall(r'^#+ (.*)$', file.read_text(), re.MULTILINE)
            anchors = [re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
                       for heading in headings]
            assert anchor in anchors, f'{page}: {target} is none of {anchors}'
