"""A guest's own abilities: start, console, reports, clock, memory, faults. Real VMs."""

import os
import re
import time

import pytest

from hostd.boot import ImageError


def test_main_gets_arguments_and_its_value_is_the_exit_code(run):
    ended = run(
        """
        int main(int argc, char **argv) {
            for (int i = 0; i < argc; i++)
                guest_print("%d=%s\\n", i, argv[i]);
            guest_print("%s of %s\\n", guest_env("COLOUR"), guest_name());
            return guest_env("COLOURS") ? 1 : 42;
        }
        """,
        args=["one", "", "drei vier"],
        env={"COLOUR": "green"},
    )
    assert ended.result == {"outcome": "exit", "code": 42, "message": "", "fault": None}
    assert ended.console == "0=prog.elf\n1=one\n2=\n3=drei vier\ngreen of tested\n"


def test_print_formats_as_c_does(run):
    ended = run(
        r"""
        int main(void) {
            guest_print("%d|%5d|%-5d|%05d|%u|%x|%lu|%zu|%lld\n",
                        -7, 42, 42, -42, 4000000000u, 255, ~0ul, (size_t)9, -1ll);
            guest_print("%s|%8s|%-8s|%.2s|%c|%%|%p\n", "abc", "abc", "abc", "abc", 'x', (void *)0x1000);
            guest_print("%f|%.2f|%8.3f|%.0f|%.3f\n", 1.5, 3.14159, -2.5, 2.6, 0.9996);
            guest_print("%q %");
            return 0;
        }
        """
    )
    assert ended.console == (
        "-7|   42|42   |-0042|4000000000|ff|18446744073709551615|9|-1\n"
        "abc|     abc|abc     |ab|x|%|0x1000\n"
        "1.500000|3.14|  -2.500|3|1.000\n"
        "%q %"
    )


def test_reports_keep_their_kinds(run):
    ended = run(
        """
        int main(void) {
            report("count", 3);
            report("count", -4);
            report("big", (int64_t)1 << 62);
            report("ratio", 0.25);
            report("word", "hello");
            return 0;
        }
        """
    )
    assert ended.reports == {"count": -4, "big": 1 << 62, "ratio": 0.25, "word": "hello"}


def test_long_output_arrives_whole(run):
    ended = run(
        """
        int main(void) {
            for (int i = 0; i < 20000; i++)
                guest_print("%d ", i);
            return 0;
        }
        """
    )
    assert ended.console == "".join(f"{i} " for i in range(20000))


def test_clock_is_the_hosts(run):
    before = time.monotonic_ns()
    ended = run(
        """
        int main(void) {
            uint64_t last = guest_now_ns();
            report("first", last);
            for (int i = 0; i < 1000000; i++) {
                uint64_t now = guest_now_ns();
                if (now < last)
                    return 1;
                last = now;
            }
            report("last", last);
            report("real", guest_real_ns());
            uint64_t start = guest_ticks();
            while (guest_ticks_to_ns(guest_ticks() - start) < 10000000)
                ;
            report("spent", guest_now_ns() - last);
            return 0;
        }
        """
    )
    assert ended.result["code"] == 0
    assert before < ended.reports["first"] < ended.reports["last"] < time.monotonic_ns()
    assert abs(ended.reports["real"] - time.time_ns()) < 60e9
    assert ended.reports["spent"] >= 9_900_000


def test_memory_is_zeroed_apart_and_ends(run):
    ended = run(
        """
        int main(void) {
            if (guest_alloc(1 << 30, 1))
                return 1;
            unsigned char *a = guest_alloc(100000, 64), *b = guest_alloc(1, 4096);
            if (!a || !b || (uintptr_t)a % 64 || (uintptr_t)b % 4096 || b < a + 100000)
                return 2;
            for (int i = 0; i < 100000; i++)
                if (a[i])
                    return 3;
            memset(a, 5, 100000);
            uint64_t left = guest_memory_free();
            if (!guest_alloc(left - 4096, 1) || guest_memory_free() > 8192)
                return 4;
            report("size", guest_memory_size());
            return 0;
        }
        """
    )
    assert ended.result["code"] == 0
    assert ended.reports["size"] == 4 << 20


def test_vector_units_keep_their_state_across_exits(run):
    ended = run(
        """
        typedef double four __attribute__((vector_size(32)));
        int main(void) {
            volatile four start = {1, 2, 3, 4};
            four sum = start;
            for (int i = 0; i < 200; i++) {
                guest_real_ns();
                sum = sum * 1.0 + start;
            }
            report("sum", sum[0] + sum[1] + sum[2] + sum[3]);
            return 0;
        }
        """
    )
    assert ended.reports["sum"] == 2010.0


def test_random_numbers_follow_the_seed(run):
    source = 'int main(void) { report("a", (int64_t)guest_random()); report("b", (int64_t)guest_random()); return 0; }'
    first, again, other = (run(source, seed=bytes(range(n, n + 32))).reports for n in (1, 1, 2))
    assert first == again
    assert first != other
    assert first["a"] != first["b"]


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("*(volatile int *)0 = 1;", r"page fault writing 0x0 \(null pointer\) at broken\+0x"),
        ("(void)*(volatile int *)0xa0000;", r"page fault reading 0xa0000 \(no memory there\) at broken"),
        ("(void)*(volatile int *)0xc0000000;", r"page fault reading 0xc0000000 \(no memory there\)"),
        ("*(volatile char *)&words = 1;", r"page fault writing 0x\w+ \(row image.*not writable\) at broken"),
        ("(void)*(volatile int *)GUEST_TABLES;", r"page fault reading 0x10000 \(row low"),
        ("*(volatile int *)GUEST_INFO = 0;", r"page fault writing 0x60000 \(row low"),
        ("((void (*)(void))heap)();", r"page fault executing 0x\w+ \(row ram.*\)"),
        ('__asm__ volatile("ud2");', "invalid opcode at broken"),
        ("volatile int zero = 0, seven = 7; seven = seven / zero;", "divide error at broken"),
        ('__asm__ volatile("hlt");', "general protection fault at broken"),
        ('__asm__ volatile("mov %%cr3, %%rax" : : : "rax");', "general protection fault at broken"),
        ('__asm__ volatile("int3");', "breakpoint at broken"),
        (
            '__asm__ volatile("int $14");',
            "(general protection fault .error code 0x72.|invalid opcode) at broken",
        ),
        ("(void)*(volatile int *)0x8000000000000000;", "general protection fault at broken"),
        ("char big[512]; big[0] = 1; deeper(big);", r"page fault writing .*stack overflow\) at deeper"),
    ],
)
def test_a_fault_is_named(run, statement, text):
    ended = run(
        """
        static const int words[4] = {1};
        __attribute__((noinline)) void deeper(char *from) {
            volatile char more[4096];
            more[0] = from[0];
            deeper((char *)more);
            more[1] = 2;
        }
        __attribute__((noinline)) void broken(void *heap) {
            (void)heap, (void)words;
            STATEMENT
            __asm__ volatile("" : : : "memory");
        }
        int main(void) { broken(guest_alloc(4096, 4096)); return 0; }
        """.replace("STATEMENT", statement)
    )
    assert ended.result["outcome"] == "fault", ended.result
    assert re.search(f"guest tested: {text}", ended.result["message"]), ended.result["message"]
    assert ended.result["code"] == 128 + ended.result["fault"]["vector"]


def test_writing_a_read_only_region_is_a_fault_that_names_it(run, tmp_path):
    (tmp_path / "data").write_bytes(b"x" * 5000)
    descriptor = os.open(tmp_path / "data", os.O_RDONLY)
    ended = run(
        """
        int main(void) {
            char *bytes = (char *)guest_region("data")->address;
            report("size", guest_region("data")->size);
            report("last", bytes[4999]);
            bytes[4097] = 1;
            return 0;
        }
        """,
        regions=[("data", descriptor, "ro")],
    )
    os.close(descriptor)
    assert ended.reports == {"size": 5000, "last": ord("x")}
    assert "(region data + 0x1001, mapped read-only) at main+0x" in ended.result["message"]
    assert (tmp_path / "data").read_bytes() == b"x" * 5000


def test_a_writable_region_is_the_file(run, tmp_path):
    (tmp_path / "data").write_bytes(bytes(8192))
    descriptor = os.open(tmp_path / "data", os.O_RDWR)
    run(
        'int main(void) { memcpy((void *)guest_region("data")->address, "guest", 5); return 0; }',
        regions=[("data", descriptor, "rw")],
    )
    os.close(descriptor)
    assert (tmp_path / "data").read_bytes()[:6] == b"guest\0"


def test_an_unknown_bell_and_odd_ports_end_the_guest_with_a_sentence(run):
    assert "rang bell 3, but it has 1" in run("int main(void) { guest_ring(3); return 0; }", bells=1).result["message"]
    ended = run('int main(void) { __asm__ volatile("outb %al, $0xf4"); return 0; }')
    assert "fault port" in ended.result["message"]
    ended = run('int main(void) { __asm__ volatile("outl %%eax, %%dx" : : "a"(0), "d"(0x60)); return 0; }')
    assert ended.result["outcome"] in ("fault", "error")


def test_bad_calls_are_answered_and_harmless(run):
    ended = run(
        """
        #include "../runtime/call.h"
        int main(void) {
            report("unknown", call(999));
            call_page->args[0] = 5000;
            report("console", call(GUEST_CALL_CONSOLE));
            call_page->args[0] = 0;
            call_page->args[1] = 65;
            report("wait", call(GUEST_CALL_WAIT));
            call_page->args[1] = 1;
            call_page->data[0] = 200;
            report("bell", call(GUEST_CALL_WAIT));
            call_page->args[0] = 2;
            call_page->args[1] = ~0ull;
            call_page->args[2] = 4;
            report("report", call(GUEST_CALL_REPORT));
            return 0;
        }
        """,
        bells=2,
    )
    assert ended.reports == {"unknown": -38, "console": -22, "wait": -22, "bell": -22, "report": -22}


def test_waiting_ends_at_its_limit_and_at_a_ring(run):
    ended = run(
        """
        int main(void) {
            uint32_t bells[2] = {0, 1};
            uint64_t start = guest_now_ns();
            report("nothing", guest_wait(bells, 2, 20000000));
            report("waited", guest_now_ns() - start);
            guest_ring(1);
            report("rang", guest_wait(bells, 2, GUEST_NO_LIMIT));
            report("once", guest_wait(bells, 2, 0));
            return 0;
        }
        """,
        bells=2,
    )
    assert ended.reports["nothing"] == 0
    assert ended.reports["waited"] >= 20_000_000
    assert ended.reports["rang"] == 2
    assert ended.reports["once"] == 0


def test_a_sleep_looks_at_words_first(run):
    ended = run(
        """
        static uint32_t words[2] = {7, 8};
        int main(void) {
            uint32_t bell = 1;
            struct guest_look looks[2] = {{(uint64_t)&words[0], 7, 0}, {(uint64_t)&words[1], 8, 0}};
            uint64_t start = guest_now_ns();
            report("same", guest_sleep(&bell, 1, looks, 2, 20000000));
            report("waited", guest_now_ns() - start);
            guest_ring(1);
            report("rang", guest_sleep(&bell, 1, looks, 2, GUEST_NO_LIMIT));
            words[1] = 9;
            report("changed", guest_sleep(&bell, 1, looks, 2, GUEST_NO_LIMIT));
            guest_ring(1);
            report("before the bell", guest_sleep(&bell, 1, looks, 2, GUEST_NO_LIMIT));
            report("kept", guest_sleep(&bell, 1, looks, 1, GUEST_NO_LIMIT));
            return 0;
        }
        """,
        bells=2,
    )
    assert ended.reports["waited"] >= 20_000_000
    assert {name: ended.reports[name] for name in ("same", "rang", "changed", "before the bell", "kept")} == {
        "same": 0,
        "rang": 1,
        "changed": 0,
        "before the bell": 0,
        "kept": 1,
    }


@pytest.mark.parametrize(
    ("words", "address"),
    [(65, "(uint64_t)&word"), (1, "(uint64_t)&word + 2"), (1, "~0ull - 3"), (1, "1ull << 40")],
)
def test_a_sleep_looks_nowhere_else(run, words, address):
    ended = run(
        """
        #include "../runtime/call.h"
        static uint32_t word __attribute__((aligned(8)));
        int main(void) {
            volatile struct guest_look *look = (volatile struct guest_look *)(call_page->data + GUEST_LOOKS);
            look->address = ADDRESS;
            call_page->args[0] = GUEST_NO_LIMIT;
            call_page->args[1] = 0;
            call_page->args[2] = WORDS;
            report("sleep", call(GUEST_CALL_SLEEP));
            report("result", call_page->args[0] + word);
            return 0;
        }
        """.replace("ADDRESS", address).replace("WORDS", str(words))
    )
    assert ended.reports == {"sleep": -22, "result": 0}


def test_too_many_arguments_are_one_sentence(run):
    with pytest.raises(ImageError, match="info area"):
        run("int main(void) { return 0; }", args=["x" * 1000] * 1000)


def test_extra_slots_are_where_the_file_says(run, tmp_path):
    (tmp_path / "disk").write_bytes(b"d" * 8192)
    at = 0x2_0000_0000
    ended = run(
        """
        int main(void) {
            char *disk = (char *)0x200000000, *scratch = disk + 0x100000, *zero = disk + 0x200000;
            report("disk", disk[4095]);
            disk[0] = 'G';
            scratch[4096] = 5;
            report("scratch", scratch[4096] + scratch[0]);
            report("zero", zero[0]);
            zero[0] = 1;
            return 0;
        }
        """,
        slots=[
            {"name": "disk", "gpa": at, "size": 4096, "backing": "file", "path": str(tmp_path / "disk"), "offset": 4096,
             "access": "rw"},
            {"name": "scratch", "gpa": at + 0x100000, "size": 8192, "backing": "anonymous", "path": None, "offset": 0,
             "access": "rw"},
            {"name": "zero", "gpa": at + 0x200000, "size": 4096, "backing": "device", "path": "/dev/zero", "offset": 0,
             "access": "ro"},
        ],
    )  # fmt: skip
    assert ended.reports == {"disk": ord("d"), "scratch": 5, "zero": 0}
    assert "page fault writing 0x200200000 (row zero + 0x0, not writable)" in ended.result["message"]
    assert (tmp_path / "disk").read_bytes() == b"d" * 4096 + b"G" + b"d" * 4095


def test_an_extra_slot_that_overlaps_is_one_sentence(run):
    slot = {
        "name": "bad",
        "gpa": 0x200000,
        "size": 4096,
        "backing": "anonymous",
        "path": None,
        "offset": 0,
        "access": "rw",
    }
    with pytest.raises(ValueError, match="overlap slot ram"):
        run("int main(void) { return 0; }", slots=[slot])
