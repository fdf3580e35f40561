"""The report of runs: what it shows, that it is one harmless file, and that damage is told of."""

import base64
import builtins
import html.parser
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import report
from benchmarks.fuzz import mutated
from reports.charts import levels, phases
from reports.page import _spread
from reports.page import report as make_report
from reports.run import read_run, thinned, written
from torch_utils.grids import save_png

pytest.importorskip('matplotlib')
EVIL = '"><script>alert(1)</script><img src=http://evil.example/a.png onerror=alert(2)>\'$\x1b[31m‮'


def entry(mean, num=1):
    return {'num': num, 'mean': mean, 'std': 0}


def line(kimg, loss, **more):
    return {'Progress/kimg': entry(kimg), 'Loss/loss': entry(loss), 'Timing/total_sec': entry(60 *
            kimg), 'Training/gradient_norm': entry(10 * loss), 'Training/learning_rate':
            entry(0.001), 'Loss/sigma_0.2_to_0.5': entry(loss / 2, 300), 'Loss/sigma_above_100':
            entry(2 * loss, 100), **more}


def make_run(folder, lr=0.001, evil='plain', metrics=True):
    folder.mkdir(parents=True)
    judged = {'Metrics/fid': entry(7.5), f'Metrics/{evil}': entry(2), 'evaluation':
              {'ref': evil, 'num_images': 500, 'detector': 'demo', 'num_steps': 18}}
    lines = [line(0.0, 1.0), line(1.0, 0.8), line(2.0, 0.5, **(judged if metrics else {})),
             {**line(3.0, 0.4), 'Metrics/fid': {'num': 0, 'mean': None, 'std': None},
              'evaluation': {}, 'trouble': f'no numbers: {evil}'}]
    (folder / 'stats.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in lines))
    settings = {'optimizer': {'lr': lr, 'clip': None}, 'total_nimg': 4000, 'data': {'path': evil},
                'averages': [{'type': evil, 'width': 0.1}], 'cache': True, evil: [1, 2]}
    (folder / 'training_options.json').write_text(json.dumps(settings))
    card = {'started': evil, 'kimg': 0, 'arguments': [evil, '--lr=1'], 'parameters': 12345, 'data':
            {'path': evil, 'images': 77}, 'hardware': {'device': evil, 'processes': 2}, 'revision':
            {'commit': '0123456789abcdef', 'modified': True}, 'versions': {evil: evil}}
    (folder / 'run_card.jsonl').write_text(json.dumps(card) + '\n')
    (folder / 'changes.jsonl').write_text(json.dumps({'kimg': 1.5, 'changed': [evil]}) + '\n')
    (folder / 'best.json').write_text(json.dumps({'kimg': 2.0}))
    for name, grey in (('fakes000001', 10), ('fakes000002', 20), ('reals', 30)):
        save_png(np.full([8, 12, 3], grey, dtype=np.uint8), folder / f'{name}.png')
    return folder


def run(*arguments):
    return CliRunner().invoke(report.main, [str(argument) for argument in arguments])


def made(*arguments, dest):
    result = run(*arguments, f'--dest={dest}')
    assert (result.exit_code, result.output) == (0, f'Wrote {dest}\n')
    return dest.read_text(encoding='utf-8')


class Page(html.parser.HTMLParser):
    """A page whose elements are all closed in their order; its elements, and its text."""
    ALONE = {'meta', 'img'}

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.shown = [], [], ''
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ['style']:
            self.shown += f'{data}\n'

    def rows(self, page):
        return [[re.sub('<[^>]*>', '', cell) for cell in re.findall('<t[hd]>(.*?)</t[hd]>', row)]
                for row in re.findall('<tr>(.*?)</tr>', page)]


def pictures(page):
    """The kind and the bytes of each picture in a page."""
    return [(kind, base64.b64decode(data)) for kind, data in
            re.findall(r'<img src="data:image/([a-z+]+);base64,([^"]*)"', page)]


def test_one_run(tmp_path):
    page = made(make_run(tmp_path / 'first'), dest=tmp_path / 'a.html')
    parsed = Page(page)
    rows = parsed.rows(page)
    assert rows[1] == ['first', '3', '4', '0.4', '0.05', '12345', 'plain, 77', '2 x plain',
                       '0123456789ab, with changes']
    assert ['0.2 to 0.5', '0.2'] in rows and ['100 to ∞', '0.8'] in rows   # half, twice the loss
    assert ['first', '2', '7.5', '2', '500', 'demo', '18', 'plain', 'best'] in rows
    assert ['first', '3', '–', '–', '–', '–', '–', '–', 'no numbers: plain'] in rows
    assert ['1.5', 'plain'] in rows and ['optimizer.lr', '0.001'] in rows
    assert ['optimizer.clip', '–'] in rows and ['averages.0.width', '0.1'] in rows
    assert ['cache', 'yes'] in rows and ['plain', '1, 2'] in rows
    assert 'train.py plain --lr=1' in parsed.shown and 'What differs' not in parsed.shown
    kinds = [kind for kind, _ in pictures(page)]
    # loss, norm, rate; by level, over time; two metrics; three pictures
    assert kinds == ['svg+xml'] * 7 + ['png'] * 3
    greys = [np.asarray(PIL.Image.open(io.BytesIO(data))).tolist()[0][0]
             for kind, data in pictures(page) if kind == 'png']
    assert greys == [[10] * 3, [20] * 3, [30] * 3]


def test_several_runs_side_by_side(tmp_path):
    runs = [make_run(tmp_path / name, lr, metrics=False) for name, lr in (('a', 0.001),
                                                                          ('b', 0.002))]
    page = made(*runs, dest=tmp_path / 'both.html')
    rows = Page(page).rows(page)
    start = rows.index(['setting', 'a', 'b'])
    assert rows[start:start + 2] == [rows[start], ['optimizer.lr', '0.001', '0.002']]
    assert rows[start + 2] == ['σ', 'a', 'b']   # the next table: no other setting differs
    assert ['0.2 to 0.5', '0.2', '0.2'] in rows
    same = made(runs[0], runs[0], dest=tmp_path / 'same.html')
    assert 'The settings of all runs are the same.' in same
    assert str(runs[0]) in same   # the last parts of the paths would not tell them apart


def check_harmless(page):
    """It is HTML, does nothing, and refers to nothing elsewhere."""
    parsed = Page(page)
    allowed = {'html', 'head', 'meta', 'title', 'style', 'body', 'h1', 'h2', 'h3', 'p', 'div',
               'table', 'thead', 'tbody', 'tr', 'th', 'td', 'figure', 'figcaption', 'img', 'svg',
               'line', 'details', 'summary', 'code'}
    assert {tag for tag, _ in parsed.elements} <= allowed
    for tag, attributes in parsed.elements:
        assert not any(name.startswith('on') or name in ('href', 'style', 'srcset')
                       for name in attributes), (tag, attributes)
        assert tag != 'img' or attributes['src'].startswith('data:image/')
    [policy] = [attributes['content'] for tag, attributes in parsed.elements
                if attributes.get('http-equiv') == 'Content-Security-Policy']
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    style = re.search('<style>(.*?)</style>', page, re.DOTALL)[1]
    assert 'url(' not in style and '@import' not in style
    for kind, data in pictures(page):
        if kind == 'svg+xml':
            svg = data.decode()
            assert svg.startswith('<svg') and '<script' not in svg
            assert all(re.match('#|data:image/png;', target)   # the latter of a bar of colours
                       for target in re.findall(r'\bhref="([^"]*)', svg))
            # the names of the two vocabularies, which nobody fetches
            assert set(re.findall(r'\w+://[^"]*', svg)) <= {'http://www.w3.org/2000/svg',
                                                            'http://www.w3.org/1999/xlink'}
    return parsed


def test_names_of_a_stranger_are_shown_and_not_obeyed(tmp_path):
    plain = make_run(tmp_path / 'plain')
    evil = make_run(tmp_path / EVIL.replace('/', '_'), evil=EVIL)
    for folders in ([plain], [evil], [plain, evil]):
        page = made(*folders, dest=tmp_path / 'page.html')
        parsed = check_harmless(page)
        assert '<script' not in page and '\x1b' not in page and '‮' not in page
        if evil in folders:
            shown = EVIL.replace('\x1b', '\\x1b').replace('‮', '\\u202e')
            assert parsed.shown.count(shown) > 8
            assert ('0.1' in parsed.shown) and shown.replace('/', '_') in parsed.shown


def test_the_same_bytes_each_time(tmp_path):
    folder = make_run(tmp_path / 'a')
    assert made(folder, dest=tmp_path / '1') == made(folder, dest=tmp_path / '2')


def test_damaged_lines_are_left_out_and_told_of(tmp_path):
    folder = make_run(tmp_path / 'a')
    stats = folder / 'stats.jsonl'
    whole = stats.read_bytes()
    huge = b'{"Progress/kimg": {"mean": 1}, "Loss/loss": {"mean": 1' + b'0' * 400 + b'}}'
    odd = b'{"Progress/kimg": {"mean": 1.5}, "Loss/loss": {"mean": 1e300}, "evaluation": 3, ' \
          b'"trouble": [1], "Metrics/x": 7, "Loss/sigma_1_to_2": {"mean": 1, "num": "x"}}'
    stats.write_bytes(b'\n'.join([b'[]', b'{"Progress/kimg": 3}', b'\xff\xfe', b'[' * 100_000,
                                  huge, odd, whole + whole[:40]]))
    (folder / 'run_card.jsonl').write_bytes(b'{\n[1]\n' + b'[' * 100_000)
    (folder / 'best.json').write_text('[]')
    (folder / 'fakes000001.png').write_bytes(b'\x89PNG\r\n')
    page = made(folder, dest=tmp_path / 'a.html')
    shown = check_harmless(page).shown
    assert '5 lines of stats.jsonl could not be read' in shown
    assert 'best.json could not be read' in shown
    assert re.search(r'1 thousand images: \S+: fakes000001.png is not an image', shown)
    found = read_run(folder, 'a')
    assert found.curve('Loss/loss') == [(0, 1), (1, 0.8), (2, 0.5), (3, 0.4)]
    (folder / 'training_options.json').write_text('{"a":' * 5000 + '1' + '}' * 5000)
    assert 'training_options.json could not be read' in made(folder, dest=tmp_path / 'a.html')


def test_links_in_the_folder_are_not_followed(tmp_path):
    """The picture of somebody else's file would get into a page that is mailed."""
    folder = make_run(tmp_path / 'a')
    for name in ('stats.jsonl', 'fakes000002.png', 'reals.png'):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    page = made(folder, dest=tmp_path / 'a.html')
    assert 'stats.jsonl is a link, and was not read' in page
    assert [kind for kind, _ in pictures(page)] == ['png']   # fakes000001 alone; no curves


def test_where_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = make_run(tmp_path / 'a'), make_run(tmp_path / 'b')
    assert run('a').output == 'Wrote a/report.html\n' and (a / 'report.html').is_file()
    assert run('a', b).output == 'Wrote report.html\n'
    assert '<h2>Pictures' not in made(a, '--pictures=0', dest=tmp_path / 'c')


@pytest.mark.parametrize(('arguments', 'message'), [
    (['none'], 'none does not exist: name the folder of a run, as train.py --run does'),
    (['a/stats.jsonl'], 'a/stats.jsonl is a file: name the folder of a run, as train.py --run '
                        'does'),
    (['empty'], 'empty is no folder of a run: it has neither stats.jsonl nor '
                'training_options.json'),
    (['a', '--dest=empty'], '--dest=empty is a folder; name a file'),
    (['a'] * 31, '31 runs are more than can be told apart: name at most 30'),
])
def test_bad_input_ends_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / 'a')
    (tmp_path / 'empty').mkdir()
    result = run(*arguments)
    assert (result.exit_code, result.output) == (2, f'Error: {message}\n')
    assert not (tmp_path / 'report.html').exists()


def test_without_matplotlib(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith('matplotlib'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    result = run(make_run(tmp_path / 'a'))
    assert result.exit_code == 2 and 'matplotlib, of the extra demo' in result.output


def test_the_loss_by_noise_level_is_weighted_by_the_images():
    told = levels([{'Loss/sigma_1_to_2': entry(1.0, 10), 'Loss/sigma_2_to_5': entry(3.0, 10)},
                   {'Loss/sigma_1_to_2': entry(2.0, 30)}])
    assert told == {'Loss/sigma_1_to_2': (1.75, 0.8), 'Loss/sigma_2_to_5': (3.0, 0.2)}


def test_phases(tmp_path):
    found = phases(read_run(make_run(tmp_path / 'a'), 'a'))
    assert found['first']['Loss/sigma_above_100'] == (2.0, 0.25)
    assert found['last']['Loss/sigma_above_100'] == (0.8, 0.25)


def test_thinning_keeps_the_mean():
    points = [(float(x), float(x * x)) for x in range(1000)]
    fewer = thinned(points, 100)
    assert len(fewer) == 100 and fewer[0] == (4.5, 28.5)
    assert math.isclose(sum(y for _, y in fewer) / 100, sum(y for _, y in points) / 1000)
    assert thinned(points, 1000) == points and thinned([], 10) == []


def test_pictures_from_first_to_last():
    listed = [(i, None) for i in range(10)]
    assert [i for i, _ in _spread(listed, 4)] == [0, 3, 6, 9]
    assert _spread(listed, 1) == [(9, None)] and _spread(listed, 20) == listed


def test_values_as_text():
    assert [written(x) for x in (None, True, 0.1 + 0.2, [1, None], {}, {'a': 1}, 'x')] == [
        '–', 'yes', '0.3', '1, –', '–', '{"a": 1}', 'x']


def test_a_browser_shows_it(tmp_path):
    """Headless Chromium obeys the policy, and paints curves in the colours of the runs."""
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser',
                                                   'google-chrome'))), None)
    if browser is None:
        pytest.skip('Chromium is not installed')
    page = tmp_path / 'page.html'
    made(make_run(tmp_path / 'a', evil=EVIL), make_run(tmp_path / 'b'), dest=page)
    shot = tmp_path / 'shot.png'
    command = [browser, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr',
               '--window-size=1000,900', f'--user-data-dir={tmp_path / "profile"}',
               f'--screenshot={shot}', page.as_uri()]
    log = subprocess.run(command, timeout=240, check=True, capture_output=True, text=True).stderr
    assert 'Content Security Policy' not in log and 'CONSOLE' not in log
    pixels = np.asarray(PIL.Image.open(shot).convert('RGB')).reshape(-1, 3)
    for colour in ([0x1f, 0x77, 0xb4], [0xff, 0x7f, 0x0e]):   # of both runs
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 40).sum() > 100


@pytest.mark.parametrize('file', ['stats.jsonl', 'training_options.json', 'run_card.jsonl',
                                  'changes.jsonl', 'best.json', 'fakes000001.png'])
def test_altered_files_are_shown_or_refused(tmp_path, monkeypatch, file):
    """Few with their curves, since these take most of the time."""
    folder = make_run(tmp_path / 'a')
    original = (folder / file).read_bytes()
    others = [path.read_bytes() for path in folder.iterdir()]
    rng = np.random.default_rng(1)
    for number in range(60):
        (folder / file).write_bytes(mutated(original, others, rng))
        with monkeypatch.context() as patch:
            if number or file != 'stats.jsonl':
                patch.setattr('reports.charts.svg_of', lambda draw: '<svg></svg>')
            try:
                page = make_report([read_run(folder, 'a')]).decode()
            except ValueError as error:
                assert '\n' not in str(error)
                continue
        check_harmless(page)


def test_numbers_at_the_ends_of_what_is_drawn(tmp_path):
    folder = make_run(tmp_path / 'a', metrics=False)
    odd = [line(kimg, loss) for kimg, loss in [(0.5, 1e29), (1e29, 2e-30), (-3.0, -1e29), (2.5, 0)]]
    with open(folder / 'stats.jsonl', 'a') as file:
        file.writelines(json.dumps(each) + '\n' for each in odd)
    assert len(pictures(made(folder, dest=tmp_path / 'a.html'))) > 5
