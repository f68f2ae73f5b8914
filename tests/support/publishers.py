"""Threads that publish different content under the same name at the same time."""

import threading

from transforms.core import storage

NUM_THREADS = 8


def publish_at_once(url: str) -> list[int]:
    """Publish the number of each thread as text; return the threads that were told they won."""
    barrier, won = threading.Barrier(NUM_THREADS), []

    def publish(number: int) -> None:
        barrier.wait()
        if storage.publish_bytes(str(number).encode(), url):
            won.append(number)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won
