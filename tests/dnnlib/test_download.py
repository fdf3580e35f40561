"""Downloads from a server of our own: whole, broken, altered, resumed, shared."""

import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from checkpoints.open import open_network
from dnnlib.download import _Redirects, cache_dir, cached_path, fetch
from metrics.reference_files import read_reference
from metrics.sample_batch import SampleBatch

CONTENT = bytes(range(256)) * 8000   # 2 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ROOT = Path(__file__).parents[2]


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; the first `breaks` answers end too early, after `portion` bytes."""
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content, self.breaks, self.portion, self.ranges, self.requests = (
            CONTENT,
            0,
            700_000,
            True,
            [],
        )
        self.answer = b''   # the whole answer, instead of the content
        self.etag, self.type, self.status = '"one"', 'application/octet-stream', None

    def handle_error(self, request, client_address):
        pass   # clients may leave

    def url(self, name='net.pkl'):
        return f'http://127.0.0.1:{self.server_port}/{name}'


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        wanted, condition = self.headers.get('Range'), self.headers.get('If-Range')
        server.requests.append(wanted)
        if server.status:
            self.send_error(server.status)
            return
        if server.answer:
            self.wfile.write(server.answer)
            self.close_connection = True
            return
        start = 0
        if wanted and server.ranges and condition == server.etag:
            start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
            length = len(server.content)
            self.send_header('Content-Range', f'bytes {start}-{length - 1}/{length}')
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header('Content-Length', str(len(body)))
        self.send_header('Content-Type', server.type)
        if server.etag:
            self.send_header('ETag', server.etag)
        self.end_headers()
        broken = server.breaks > 0
        server.breaks -= broken
        self.wfile.write(body[:server.portion] if broken else body)
        self.close_connection = True


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('LIMPID_CACHE_DIR', str(tmp_path / 'cache'))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def left_over(path):
    """What is in the cache beside the file and its lock."""
    return sorted(p.name for p in path.parent.iterdir() if p != path and p.suffix != '.lock')


def test_a_file_is_downloaded_once(server):
    path = fetch(server.url(), SHA256)
    assert path == cached_path(server.url()) and path.read_bytes() == CONTENT
    assert path.parent == cache_dir() and path.name.endswith('-net.pkl') and left_over(path) == []
    assert fetch(server.url(), SHA256.upper()) == fetch(server.url()) == path
    assert server.requests == [None]
    assert fetch(server.url('other.pkl')) != path


@pytest.mark.parametrize('folder', ['.', 'downloads'])
def test_the_cache_of_edm_is_used_where_the_checksum_fits(server, tmp_path, monkeypatch, folder):
    """Its names begin with the MD5 of the address."""
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'theirs'))
    key = hashlib.md5(server.url().encode()).hexdigest()
    copy = tmp_path / 'theirs' / folder / f'{key}_net.pkl'
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    assert fetch(server.url()) == fetch(server.url(), SHA256) == copy
    assert server.requests == []
    copy.write_bytes(b'another file')
    assert fetch(server.url(), SHA256) == cached_path(server.url())
    assert fetch(server.url()) == cached_path(server.url())   # ours comes first
    assert server.requests == [None]


def test_a_broken_connection_is_continued(server):
    server.breaks = 2
    path = fetch(server.url(), SHA256, pause=0)
    assert path.read_bytes() == CONTENT and left_over(path) == []
    assert server.requests == [None, 'bytes=700000-', 'bytes=1400000-']


def test_a_later_call_continues(server):
    server.breaks = 6
    server.portion = 100_000
    with pytest.raises(ValueError, match='the connection broke before the end'):
        fetch(server.url(), SHA256, pause=0)
    assert left_over(cached_path(server.url())) == [f'{cached_path(server.url()).name}.{end}'
                                                    for end in ('part', 'validator')]
    assert fetch(server.url(), SHA256, pause=0).read_bytes() == CONTENT
    assert server.requests[-1] == 'bytes=600000-'


def test_without_ranges_it_starts_again(server):
    server.breaks, server.ranges = 1, False
    assert fetch(server.url(), pause=0).read_bytes() == CONTENT
    assert server.requests == [None, 'bytes=700000-']


def test_a_file_that_changed_meanwhile_is_not_mixed(server):
    server.breaks = 6
    with pytest.raises(ValueError):
        server.portion = 100_000
        fetch(server.url(), pause=0)
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert fetch(server.url(), pause=0).read_bytes() == CONTENT[::-1]
    # A part that is longer than what is there now.
    path = cached_path(server.url('third'))
    path.with_name(f'{path.name}.part').write_bytes(CONTENT * 2)
    path.with_name(f'{path.name}.validator').write_text('"two"')
    assert fetch(server.url('third'), pause=0).read_bytes() == CONTENT[::-1]


def test_without_a_validator_nothing_is_continued(server):
    server.breaks, server.etag = 1, ''
    assert fetch(server.url(), pause=0).read_bytes() == CONTENT
    assert server.requests == [None, None]


def test_a_wrong_checksum_leaves_nothing(server):
    wrong = '0' * 64
    with pytest.raises(ValueError) as error:
        fetch(server.url(), wrong)
    assert str(error.value) == (f'{server.url()} has the checksum {SHA256} instead of {wrong}: '
                                'it is another file, or was altered on its way')
    path = cached_path(server.url())
    assert not path.exists() and not path.with_name(f'{path.name}.part').exists()
    fetch(server.url())
    with pytest.raises(ValueError, match=f'^{path} does not have the checksum {wrong}: delete it, '
                                         f'and it is fetched from '):
        fetch(server.url(), wrong)


def test_what_is_not_there_says_where_to_put_it(server, monkeypatch):
    server.status = 404
    path = cached_path(server.url())
    with pytest.raises(ValueError) as error:
        fetch(server.url())
    assert str(error.value) == (
        f'{server.url()} cannot be fetched (HTTP Error 404: Not Found): download it elsewhere and '
        f'save it as {path}')
    assert server.requests == [None]
    offline = 'http://127.0.0.1:1/net.pkl'
    with pytest.raises(ValueError) as error:
        fetch(offline)
    assert str(error.value).startswith(f'{offline} cannot be fetched (')
    assert str(error.value).endswith(f'): download it elsewhere and save it as '
                                     f'{cached_path(offline)}')
    cached_path(offline).write_bytes(CONTENT)
    assert fetch(offline, SHA256).read_bytes() == CONTENT   # as it was told


def test_a_server_in_trouble_is_asked_again(server):
    server.status = 503
    with pytest.raises(ValueError, match='HTTP Error 503'):
        fetch(server.url(), pause=0)
    assert len(server.requests) == 6


def test_a_web_page_is_no_file(server):
    server.type = 'text/html; charset=utf-8'
    with pytest.raises(ValueError, match=f'^{server.url()} answers with a web page, not with a '
                                         f'file$'):
        fetch(server.url())
    assert left_over(cached_path(server.url())) == []


def test_only_http(tmp_path):
    for url in ('file:///etc/passwd', 'ftp://example.org/x', 'net.pkl'):
        with pytest.raises(ValueError, match=f'^{url} is no http or https address$'):
            fetch(url)


def test_names_are_safe(server):
    assert re.fullmatch(r'[0-9a-f]{16}-a_b__c.pkl',
                        cached_path('http://h/x/a%b%%c.pkl?y=../../z').name)
    assert cached_path('http://h').name.endswith('-file')
    assert len(cached_path('http://h/' + 'x' * 1000).name) == 117


def test_processes_download_once(server):
    script = 'import sys; from dnnlib.download import fetch; print(fetch(sys.argv[1]))'
    processes = [subprocess.Popen([sys.executable, '-c', script, server.url()], cwd=ROOT,
                                  stdout=subprocess.PIPE, text=True)
                 for _ in range(4)]
    answers = {process.communicate(timeout=240)[0].strip() for process in processes}
    assert answers == {str(cached_path(server.url()))} and server.requests == [None]
    assert os.path.getsize(answers.pop()) == len(CONTENT)


def test_a_network_by_its_address(server):
    server.content = (ROOT / 'tests' / 'golden' / 'published-ddpmpp-edm.pkl').read_bytes()
    net = open_network(server.url('network-snapshot.pkl'))
    assert net.img_resolution == 16 and net.label_dim == 4 and server.requests == [None]


@pytest.mark.parametrize(('answer', 'message'), [
    (b'HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/net.pkl\r\n\r\n',
     'leads to ftp://127.0.0.1/net.pkl, which is not https or http'),
    (b'HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n', 'file:///etc/passwd'),
    (b'HTTP/1.1 204 No Content\r\n\r\n', 'answers with status 204, not with a file'),
    (b'HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nContent-Range: bytes 0-2/9\r\n\r\nabc',
     'answers with status 206, not with a file'),
    (b'HTTP/1.1 200 OK\r\n\r\nabc', 'does not say how long the file is, so that a broken one '),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\nabc',
     'is a file of 100,000,000 MB, where 8,590 MB are the most'),
    (b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nlogin',
     'answers with a web page, not with a file'),
    (b'HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc', 'gives the file a length of -5 bytes'),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 1e9\r\n\r\nabc', 'gives the file a length of 1e9 bytes'),
    (b'HTTP/1.1 404 \x1b[2Jgone\r\n\r\n', r'cannot be fetched \(HTTP Error 404: \?\[2Jgone\)'),
], ids=['ftp', 'file', '204', '206', 'endless', 'huge', 'login', 'negative', 'no number',
        'escape'])
def test_what_is_no_file_is_never_kept(server, answer, message):
    server.answer = answer
    with pytest.raises(ValueError, match=message) as refusal:
        fetch(server.url(), pause=0)
    assert len(str(refusal.value)) < 500 and str(refusal.value).isprintable()
    assert not cached_path(server.url()).exists()


def test_https_leads_to_https_only():
    request = urllib.request.Request('https://example.org/net.pkl')
    for target in ('http://example.org/net.pkl', 'ftp://example.org/net.pkl', '//['):
        with pytest.raises(ValueError, match='which is not https$'):
            _Redirects().redirect_request(request, io.BytesIO(), 302, '', {}, target)
    followed = _Redirects().redirect_request(request, io.BytesIO(), 302, '', {},
                                             'https://elsewhere.org/net.pkl')
    assert followed.full_url == 'https://elsewhere.org/net.pkl'


def test_a_chunked_answer_is_complete_only_with_its_end(server):
    start = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n'
    server.answer = start
    with pytest.raises(ValueError, match='cannot be fetched'):
        fetch(server.url(), pause=0)
    server.answer = start + b'0\r\n\r\n'
    assert fetch(server.url(), pause=0).read_bytes() == b'abc'
    with pytest.raises(ValueError, match='more than 0 MB come'):
        fetch(server.url('other'), most=2)


def test_a_damaged_file_of_the_cache_tells_how_it_is_fetched_anew(server):
    with pytest.raises(ValueError, match='is damaged or not a network snapshot') as refusal:
        open_network(server.url())
    assert str(refusal.value).endswith(f'(it is from {server.url()}: delete '
                                       f'{cached_path(server.url())}, and it is fetched again)')


def test_each_kind_of_file_has_its_own_limit(server):
    server.answer = b'HTTP/1.1 200 OK\r\nContent-Length: 2147483649\r\n\r\nabc'
    with pytest.raises(ValueError, match='a file of 2,147 MB, where 2,147 MB are the most'):
        read_reference(server.url('statistics.npz'))
    server.answer = server.answer.replace(b'2147483649', b'137438953473')
    with pytest.raises(ValueError, match='where 137,439 MB are the most'):
        SampleBatch(server.url('samples.npz'))
