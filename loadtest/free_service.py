"""The command `rerankd` with one more engine, `free`; `loadtest.host_path` starts it, over older commits too.

python -m loadtest.free_service serve --registry ...
"""

from loadtest.free_engine import register
from rerankd.__main__ import main

if __name__ == "__main__":
    register()
    main()
